"""A stand-in for LLM providers: real wires, scripted faults and a ledger of what was billed.

It imports nothing of Prompt Stack, so that a fault of ours can't hide in both.
"""
