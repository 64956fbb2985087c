//! Images and masks on disk.
/// 64 megapixels.
pub const DEFAULT_MAX_PIXELS: u64 = 64_000_000;
