//! The controllers of platctrl: replication, placement.
