"""What users' own tests need: a stand-in for the CLI and a stand-in for the API it calls.

Nothing here is imported by the server.
"""
