"""The main job, told as a story: real face patches of two clinics, used by a university that never sees them.

`data` makes features of real images, `story` plays the people of five organisations, `report` shows what came of it. Everything
else is the product itself: separate processes that meet only through the chain and libp2p.
"""
