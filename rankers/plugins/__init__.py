"""What works with every tower: ReST's contrast, AKT-Rec's one-way transfer and views, and what they do to items.

A new auxiliary loss or gate belongs here. Imports ``towers`` for their interface.
"""
