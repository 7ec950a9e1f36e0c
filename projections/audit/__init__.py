"""What a finance auditor reads: answers at any past instant that stay the same for ever (money, section 12.7).

Every question is asked of one position of the log. Read models that lag are only believed up to where they have read;
the rest comes from the events themselves, so an answer is right however far behind they are.
"""
