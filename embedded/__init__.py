"""Real PostgreSQL and Valkey servers from wheels, for a machine that has neither.

They belong to a state folder and live as long as anyone uses them. Nothing listens on TCP, and
nobody else on the machine can reach the data or the sockets.
"""
