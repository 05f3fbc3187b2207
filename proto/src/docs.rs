//! The comments of the contract, as they stand above its declarations.

use prost_reflect::FileDescriptor;

/// The comment above the declaration at `path` of a file, such as `MethodDescriptor::path()`:
/// its lines, trimmed. Empty when there is none, as in all of [`Contract::get`](crate::Contract::get): comments are in
/// [`Contract::documented`](crate::Contract::documented).
pub fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let info = file.file_descriptor_proto().source_code_info.as_ref();
    let location = info.and_then(|info| info.location.iter().find(|location| location.path == path));
    let text = location.and_then(|location| location.leading_comments.as_deref()).unwrap_or_default();
    let lines: Vec<&str> = text.trim().lines().map(str::trim).collect();
    lines.join("\n")
}
