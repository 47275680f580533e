//! The parts of an expression that are left to the cel crate's interpreter.
//!
//! Before it is interpreted, an expression's leaves (variables, `hl7(…)`, `header(…)`, `patients()`, matches against a pattern) are replaced by identifiers
//! `@0`, `@1`, … that are resolved by the compiled form, so that paths and patterns are compiled once and both forms see the same values.

use super::{
    EvalError, Subject,
    fast::{self, Condition, Number, Text},
};
use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::common::types::{CelBool, CelInt, CelList, CelString};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::{Context, Env, ExecutionError, Value};
use std::sync::{Arc, LazyLock};

/// Standard library and string extension; which of it an expression may use is in [`super::check`].
pub(super) static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(false);
    // Fails only where names clash; then its functions are unknown at load, which the tests see.
    let _ = env.add_extension(cel::extensions::strings);
    Arc::new(env)
});

/// An expression to interpret.
#[derive(Debug)]
pub(super) struct Program {
    expression: IdedExpr,
    leaves: Vec<Leaf>,
}

#[derive(Debug)]
enum Leaf {
    Text(Text),
    Number(Number),
    Patients,
    Condition(Condition),
}

impl Program {
    /// Takes an expression that has been checked.
    pub(super) fn new(expression: &IdedExpr) -> Self {
        Self::prepare(expression, true)
    }

    /// As [`Program::new`], with nothing but values compiled: conditions are all the interpreter's.
    pub(super) fn whole(expression: &IdedExpr) -> Self {
        Self::prepare(expression, false)
    }

    fn prepare(expression: &IdedExpr, with_matches: bool) -> Self {
        let mut program = Self { expression: expression.clone(), leaves: Vec::new() };
        replace(&mut program.expression, &mut program.leaves, &mut Vec::new(), with_matches);
        program
    }

    pub(super) fn condition(&self, subject: &Subject<'_>) -> Result<bool, EvalError> {
        match self.value(subject).map_err(|e| EvalError::from(&e))? {
            Value::Bool(value) => Ok(value),
            _ => Err(EvalError::Type),
        }
    }

    /// A string or a list of strings.
    pub(super) fn texts(&self, subject: &Subject<'_>) -> Result<Vec<Arc<String>>, EvalError> {
        let text = |value: &Value| match value {
            Value::String(text) => Ok(text.clone()),
            _ => Err(EvalError::Type),
        };
        match self.value(subject).map_err(|e| EvalError::from(&e))? {
            Value::List(list) => list.iter().map(text).collect(),
            value => Ok(vec![text(&value)?]),
        }
    }

    pub(super) fn value(&self, subject: &Subject<'_>) -> Result<Value, ExecutionError> {
        let resolver = Resolver { leaves: &self.leaves, subject };
        let mut context = Context::with_env(ENVIRONMENT.clone());
        context.set_variable_resolver(&resolver);
        Value::resolve(&self.expression, &context)
    }
}

impl From<&ExecutionError> for EvalError {
    /// The original holds values of the message: it goes no further.
    fn from(error: &ExecutionError) -> Self {
        if is_type_error(error) { Self::Type } else { Self::NoValue }
    }
}

/// True for errors that do not depend on the values, only on their types.
pub(super) fn is_type_error(error: &ExecutionError) -> bool {
    use ExecutionError as E;
    matches!(
        error,
        E::NoSuchOverload(_)
            | E::UnexpectedType { .. }
            | E::UndeclaredReference(_)
            | E::InvalidArgumentCount { .. }
            | E::UnsupportedTargetType { .. }
            | E::NotSupportedAsMethod { .. }
            | E::ValuesNotComparable(..)
            | E::UnsupportedBinaryOperator(..)
            | E::UnsupportedIndex(..)
            | E::MissingArgumentOrTarget
    )
}

/// Replaces leaves by identifiers. `bound`: names of enclosing comprehensions, which hide variables.
fn replace(expression: &mut IdedExpr, leaves: &mut Vec<Leaf>, bound: &mut Vec<String>, with_matches: bool) {
    let hidden = matches!(&expression.expr, Expr::Ident(name) if bound.contains(name));
    if !hidden && let Some(leaf) = leaf(expression, bound, with_matches) {
        expression.expr = Expr::Ident(format!("@{}", leaves.len()));
        leaves.push(leaf);
        return;
    }
    let mut each = |inner: &mut IdedExpr, bound: &mut Vec<String>| replace(inner, leaves, bound, with_matches);
    match &mut expression.expr {
        Expr::Call(call) => {
            if let Some(target) = &mut call.target {
                each(target, bound);
            }
            call.args.iter_mut().for_each(|arg| each(arg, bound));
        }
        Expr::List(list) => list.elements.iter_mut().for_each(|element| each(element, bound)),
        Expr::Comprehension(comprehension) => {
            each(&mut comprehension.iter_range, bound);
            let before = bound.len();
            bound.push(comprehension.iter_var.clone());
            bound.extend(comprehension.iter_var2.clone());
            bound.push(comprehension.accu_var.clone());
            each(&mut comprehension.accu_init, bound);
            each(&mut comprehension.loop_cond, bound);
            each(&mut comprehension.loop_step, bound);
            each(&mut comprehension.result, bound);
            bound.truncate(before);
        }
        Expr::Select(select) => each(&mut select.operand, bound),
        Expr::Map(map) => {
            for entry in &mut map.entries {
                if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                    each(&mut entry.key, bound);
                    each(&mut entry.value, bound);
                }
            }
        }
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) | Expr::Struct(_) => {}
    }
}

fn leaf(expression: &IdedExpr, bound: &[String], with_matches: bool) -> Option<Leaf> {
    if matches!(expression.expr, Expr::Literal(_)) {
        return None;
    }
    if let Some(text) = fast::text(expression) {
        return Some(Leaf::Text(text));
    }
    if let Some(number) = fast::number(expression) {
        return Some(Leaf::Number(number));
    }
    if fast::is_patients(expression) {
        return Some(Leaf::Patients);
    }
    // A match whose subject is a name of a comprehension is not a leaf.
    if with_matches
        && bound.is_empty()
        && let Some(condition @ Condition::Matches(..)) = fast::simple_condition(expression)
    {
        return Some(Leaf::Condition(condition));
    }
    None
}

struct Resolver<'a> {
    leaves: &'a [Leaf],
    subject: &'a Subject<'a>,
}

impl VariableResolver for Resolver<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let leaf = self.leaves.get(variable.strip_prefix('@')?.parse::<usize>().ok()?)?;
        Some(match leaf {
            Leaf::Text(text) => CowVal::owned(CelString::from(text.of(self.subject))),
            Leaf::Number(number) => CowVal::owned(CelInt::from(number.of(self.subject))),
            Leaf::Condition(condition) => CowVal::owned(CelBool::from(condition.holds(self.subject).ok()?)),
            Leaf::Patients => {
                let ids = self.subject.patients();
                let list: Vec<Box<dyn Val>> =
                    ids.iter().map(|id| Box::new(CelString::from(id.clone())) as Box<dyn Val>).collect();
                CowVal::owned(CelList::from(list))
            }
        })
    }
}
