"""The request and answer formats that consumers speak; each turns a body into a job and its events into chunk texts."""
