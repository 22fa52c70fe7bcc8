"""The session behind the `>>> ` prompt, in the manner of ollama's.

Owns what a user can type there and what becomes of it. `loop` reads, `commands` obey,
`chat` answers; none of them knows a terminal, so that tests can play whole sessions.
"""
