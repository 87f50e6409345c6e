"""Responses of OpenAI's Responses API: generations that are asked for, kept and gone on with."""
