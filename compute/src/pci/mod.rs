//! The PCI host bridge, bridges and functions of the board.
