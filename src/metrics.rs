//! Every metric of the proxy with its help.
