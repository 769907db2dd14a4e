"""The papers' tables on real data: LGSID's table 1, ReST's tables 5 and 6 and its ablation, AKT-Rec's ladder."""
