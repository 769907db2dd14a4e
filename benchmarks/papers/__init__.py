"""The papers' tables on real data: LGSID's tables 1 and 5, ReST's tables 5 and 6 and its ablation, AKT-Rec's ladder."""
