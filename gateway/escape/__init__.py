"""The escape: moving traffic from one endpoint to another, judged before, measured while it runs, undone at any time.

`plan` says from recorded traffic what would happen, `run` does it in steps, `guards` decide after each of them whether
to go on, `report` says what came of it. All but `run` and `reading` are pure.
"""
