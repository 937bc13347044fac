"""PARIS and ELSA (Kim et al., DAC 2022), reproduced on public profiles."""
