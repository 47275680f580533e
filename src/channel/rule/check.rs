//! What is found out about an expression when it is loaded: syntax, names, types, constants, and how much work it can be.

use super::{
    MAX_TEXT, RuleError, Subject, fast,
    position::error_at,
    slow::{self, ENVIRONMENT, Program},
    subject::VARIABLES,
};
use crate::{channel::load::nearest, message::fhir::Fhir, message::hl7::Path};
use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, SourceInfo, operators as op};
use cel::objects::ValueType;

/// Functions that an expression may use, besides operators: those whose work is in proportion to their input.
pub const FUNCTIONS: [&str; 19] = [
    "hl7",
    "header",
    "patients",
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "lowerAscii",
    "upperAscii",
    "trim",
    "substring",
    "charAt",
    "reverse",
    "string",
    "int",
    "uint",
    "double",
    "bool",
];

/// Steps that one evaluation may take.
const MAX_STEPS: u64 = 20_000;
/// Steps that a match against a pattern counts, where the interpreter compiles it each time.
const PATTERN_STEPS: u64 = 100;
/// Nesting of an expression.
const MAX_DEPTH: usize = 100;

/// The types that an expression may have to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Bool,
    Text,
    List,
}

/// An expression that has been checked.
pub(super) struct Checked {
    pub(super) expression: IdedExpr,
}

impl Checked {
    /// `wanted`: types it may give; `otherwise`: what to say when it gives none of them.
    pub(super) fn new(text: &str, wanted: &[Type], otherwise: &str) -> Result<Self, RuleError> {
        let whole = |message: String| RuleError { line: 1, column: 1, message };
        if text.len() > MAX_TEXT {
            return Err(whole(format!("an expression has at most {MAX_TEXT} bytes, this has {}", text.len())));
        }
        if text.trim().is_empty() {
            return Err(whole("the expression is empty; `true` holds for every message".into()));
        }
        let (expression, source) =
            ENVIRONMENT.parser().max_recursion_depth(48).parse_with_source_info(text).map_err(|errors| {
                let error = errors.errors.into_iter().next();
                let (line, column) = error.as_ref().map_or((1, 1), |e| e.pos);
                let message = error.map_or_else(|| "syntax error".into(), |e| e.msg.replacen("Syntax error: ", "syntax: ", 1));
                RuleError { line: line.max(1) as usize, column: column.max(1) as usize, message }
            })?;
        let mut checker = Checker { source: &source, bound: Vec::new() };
        if checker.steps(&expression, 0)? > MAX_STEPS {
            return Err(whole(
                "the expression could take too long; shorten its lists or nest fewer of exists, all, filter and map".into(),
            ));
        }
        let sample = Sample::new();
        checker.types(&expression, &sample.subject())?;
        match Program::new(&expression).value(&sample.subject()) {
            Ok(value) => {
                let found = match value.type_of() {
                    ValueType::Bool => Some(Type::Bool),
                    ValueType::String => Some(Type::Text),
                    ValueType::List => Some(Type::List),
                    _ => None,
                };
                if !found.is_some_and(|found| wanted.contains(&found)) {
                    return Err(error_at(&source, expression.id, format!("{otherwise}, this gives {}", value.type_of())));
                }
            }
            Err(error) if slow::is_type_error(&error) => return Err(error_at(&source, expression.id, error.to_string())),
            // Depends on the message.
            Err(_) => {}
        }
        Ok(Self { expression })
    }
}

/// A message to try types on: one patient, everything else empty.
struct Sample {
    fhir: Fhir,
}

impl Sample {
    fn new() -> Self {
        Self { fhir: Fhir { patients: vec!["1".into()], ..Fhir::default() } }
    }

    fn subject(&self) -> Subject<'_> {
        Subject { fhir: Some(&self.fhir), ..Subject::EMPTY }
    }
}

struct Checker<'a> {
    source: &'a SourceInfo,
    /// Names of enclosing comprehensions.
    bound: Vec<String>,
}

impl Checker<'_> {
    fn error<T>(&self, at: &IdedExpr, message: impl Into<String>) -> Result<T, RuleError> {
        Err(error_at(self.source, at.id, message))
    }

    /// Checks names and constants; gives the number of steps that an evaluation takes at most.
    fn steps(&mut self, at: &IdedExpr, depth: usize) -> Result<u64, RuleError> {
        if depth > MAX_DEPTH {
            return self.error(at, format!("an expression is nested at most {MAX_DEPTH} deep"));
        }
        match &at.expr {
            Expr::Literal(_) => Ok(1),
            Expr::Ident(name) => self.name(at, name),
            Expr::Call(call) => self.call(at, call, depth),
            Expr::List(list) => self.sum(&list.elements, depth),
            Expr::Comprehension(comprehension) => self.comprehension(at, comprehension, depth),
            Expr::Select(select) => {
                self.error(at, format!("`.{}`: nothing here has fields; use hl7(\"PID-3.1\") or header(\"name\")", select.field))
            }
            Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => self.error(at, "maps and messages have no use in a rule"),
        }
    }

    fn sum(&mut self, all: &[IdedExpr], depth: usize) -> Result<u64, RuleError> {
        all.iter().try_fold(1u64, |sum, one| Ok(sum.saturating_add(self.steps(one, depth + 1)?)))
    }

    fn name(&self, at: &IdedExpr, name: &str) -> Result<u64, RuleError> {
        let known = || VARIABLES.iter().map(|(n, _)| *n).chain(["size"]);
        if self.bound.iter().any(|b| b == name) || known().any(|n| n == name) {
            return Ok(1);
        }
        if FUNCTIONS.contains(&name) {
            return self.error(at, format!("`{name}` is a function: {name}(…)"));
        }
        self.error(at, format!("unknown name `{name}`{}", suggestion(name, known())))
    }

    fn call(&mut self, at: &IdedExpr, call: &CallExpr, depth: usize) -> Result<u64, RuleError> {
        let name = call.func_name.as_str();
        let operator = name.starts_with(['_', '!', '-', '@']);
        if !operator && !FUNCTIONS.contains(&name) {
            return self.error(at, format!("unknown function `{name}`{}", suggestion(name, FUNCTIONS.into_iter())));
        }
        let mut own = 1;
        match (name, &call.target) {
            ("hl7", None) => {
                let path = self.literal(at, call, "hl7(\"PID-3.1\")")?;
                if let Err(error) = Path::parse(&path) {
                    return self.error(&call.args[0], format!("`{path}` is no path: {error}"));
                }
                return Ok(1);
            }
            ("header", None) => {
                let header = self.literal(at, call, "header(\"content-type\")")?;
                if http::HeaderName::from_bytes(header.as_bytes()).is_err() {
                    return self.error(&call.args[0], format!("`{header}` cannot be the name of a header"));
                }
                return Ok(1);
            }
            ("patients", None) if call.args.is_empty() => return Ok(1),
            ("hl7" | "header" | "patients", _) => {
                return self.error(at, format!("`{name}` is called as hl7(\"PID-3.1\"), header(\"name\"), patients()"));
            }
            ("matches", _) => {
                let Some(pattern) = call.args.last().and_then(fast::constant) else {
                    return self.error(at, "the pattern of `matches` is written out: client.matches(\"^lab-[0-9]+$\")");
                };
                if let Err(error) = fast::pattern(&pattern) {
                    let text = error.to_string();
                    let why = text.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("not understood");
                    return self.error(
                        call.args.last().unwrap_or(at),
                        format!("the pattern is wrong: {}", why.trim_start_matches("error: ")),
                    );
                }
                own = PATTERN_STEPS;
            }
            _ => {}
        }
        let target = call.target.as_ref().map_or(Ok(0), |t| self.steps(t, depth + 1))?;
        Ok(self.sum(&call.args, depth)?.saturating_add(target).saturating_add(own))
    }

    fn literal(&self, at: &IdedExpr, call: &CallExpr, example: &str) -> Result<Box<str>, RuleError> {
        match &call.args[..] {
            [only] => {
                fast::constant(only).map_or_else(|| self.error(only, format!("its argument is written out: {example}")), Ok)
            }
            _ => self.error(at, format!("it has one argument: {example}")),
        }
    }

    fn comprehension(&mut self, at: &IdedExpr, c: &ComprehensionExpr, depth: usize) -> Result<u64, RuleError> {
        let Some(length) = length(&c.iter_range) else {
            return self.error(at, "exists, all, filter and map work on patients() or a list that is written out");
        };
        let range = self.steps(&c.iter_range, depth + 1)?;
        let before = self.bound.len();
        self.bound.push(c.iter_var.clone());
        self.bound.extend(c.iter_var2.clone());
        self.bound.push(c.accu_var.clone());
        let mut once = |part: &IdedExpr| self.steps(part, depth + 1);
        let turn = once(&c.loop_cond)?.saturating_add(once(&c.loop_step)?);
        let ends = once(&c.accu_init)?.saturating_add(once(&c.result)?);
        self.bound.truncate(before);
        Ok(turn.saturating_mul(length).saturating_add(range).saturating_add(ends))
    }

    /// Evaluates every part that stands outside comprehensions by itself, so that operands of the wrong type are found where they are.
    fn types(&self, at: &IdedExpr, subject: &Subject<'_>) -> Result<(), RuleError> {
        let (target, args) = match &at.expr {
            Expr::Call(call) => (call.target.as_deref(), &call.args[..]),
            Expr::List(list) => (None, &list.elements[..]),
            _ => (None, &[][..]),
        };
        for part in target.into_iter().chain(args) {
            self.types(part, subject)?;
        }
        let value = |e: &IdedExpr| Program::new(e).value(subject);
        if let Expr::Call(CallExpr { func_name, args, .. }) = &at.expr
            && matches!(func_name.as_str(), op::EQUALS | op::NOT_EQUALS)
            && let [left, right] = &args[..]
            && let (Ok(left), Ok(right)) = (value(left), value(right))
            && left.type_of().to_string() != right.type_of().to_string()
        {
            return self.error(at, format!("a {} is never equal to a {}", left.type_of(), right.type_of()));
        }
        match value(at) {
            Err(error) if slow::is_type_error(&error) => self.error(at, error.to_string()),
            _ => Ok(()),
        }
    }
}

/// The most elements that a list can have, where that is known.
fn length(range: &IdedExpr) -> Option<u64> {
    match &range.expr {
        Expr::List(list) => Some(list.elements.len() as u64),
        // filter and map give at most one element for each of theirs.
        Expr::Comprehension(inner) if matches!(inner.accu_init.expr, Expr::List(_)) => length(&inner.iter_range),
        _ if fast::is_patients(range) => Some(crate::message::hl7::MAX_PATIENTS as u64),
        _ => None,
    }
}

fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    nearest(name, known).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
}
