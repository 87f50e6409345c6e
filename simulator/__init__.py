"""A stand-in for LLM providers: real wires, scripted faults and a ledger of what was billed.

It imports nothing of Prompt Stack, so that what it measures is not what it is measured with.
"""
