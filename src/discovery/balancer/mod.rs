//! Configuration of balancers from the catalog's members: pure, members in, text out.
