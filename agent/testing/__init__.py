"""Stand-ins for what the agent works with: a model of some kilobytes, and a coordinator in this process.

They need no network. The model goes through the same loading, batching and sampling as any other.
"""
