//! lesion
