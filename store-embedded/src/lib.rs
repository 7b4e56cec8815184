//! The durable single-process store backend of platctrl.
