"""D-STACK (Dhakal, Kulkarni and Ramakrishnan, IEEE TCC 12(4), 2024): its models and mixes."""
