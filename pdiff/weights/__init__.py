"""Parameter trees <-> tokens: which leaves (`spec`), the two maps (`codec`), and their scale (`stats`)."""
