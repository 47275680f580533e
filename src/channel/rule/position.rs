//! Places in an expression.

use super::RuleError;
use cel::common::ast::SourceInfo;

/// An error at a node of the expression.
pub(super) fn error_at(source: &SourceInfo, id: u64, message: impl Into<String>) -> RuleError {
    let offset = source.offset_for(id).map_or(0, |(start, _)| start as usize);
    let (mut line, mut column) = (1, 1);
    for (_, c) in source.source.char_indices().take_while(|(at, _)| *at < offset) {
        if c == '\n' {
            line += 1;
            column = 1;
        } else {
            column += 1;
        }
    }
    RuleError { line, column, message: message.into() }
}
