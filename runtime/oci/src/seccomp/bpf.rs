//! Classic BPF, as far as a seccomp filter needs it.
//!
//! Every block made here ends in a return on all its paths and jumps only forward inside itself, so blocks can be put
//! one after another and need no labels.

use libc::sock_filter;

use super::compile::{Condition, Test, Verdict};

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
pub(super) const EQ: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
pub(super) const GE: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
pub(super) const GT: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

fn insn(code: u32, k: u32) -> sock_filter {
    branch(code, k, 0, 0)
}

fn branch(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

/// Loads the architecture and runs the block that belongs to it, or `otherwise`. The blocks find the system call's
/// number loaded.
pub(super) fn by_arch(blocks: Vec<(u32, Vec<sock_filter>)>, otherwise: u32) -> Vec<sock_filter> {
    let mut program = vec![insn(LOAD, ARCH)];
    for (audit, block) in blocks {
        program.push(branch(EQ, audit, 1, 0));
        program.push(insn(JUMP, block.len() as u32 + 1));
        program.push(insn(LOAD, NUMBER));
        program.extend(block);
    }
    program.push(insn(RETURN, otherwise));
    program
}

/// A binary search: `ranges` are the first number of each range and what happens in it, in ascending order, starting
/// with 0. What is the same in several ranges is there once, as far as a comparison can jump: the kernel translates the
/// program for every container that starts.
pub(super) fn search(ranges: &[(u32, Verdict)]) -> Vec<sock_filter> {
    if let Some(code) = within_reach(ranges) {
        return code;
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (low, high_code) = (search(low), search(high));
    let middle = high[0].0;
    let mut code = match u8::try_from(low.len()) {
        Ok(over) => vec![branch(GE, middle, over, 0)],
        Err(_) => vec![branch(GE, middle, 0, 1), insn(JUMP, low.len() as u32)],
    };
    code.extend(low);
    code.extend(high_code);
    code
}

/// All comparisons of a search, and behind them the leaves; `None` if the first couldn't reach the last. One range
/// always can be had: it is a leaf, whatever its length.
fn within_reach(ranges: &[(u32, Verdict)]) -> Option<Vec<sock_filter>> {
    let mut leaves: Vec<(&Verdict, usize)> = Vec::new();
    let mut tail = Vec::new();
    for (_, verdict) in ranges {
        if !leaves.iter().any(|(known, _)| *known == verdict) {
            leaves.push((verdict, ranges.len() - 1 + tail.len()));
            tail.extend(leaf(verdict));
        }
        if ranges.len() > 1 && ranges.len() + tail.len() > u8::MAX.into() {
            return None;
        }
    }
    let mut code = Vec::with_capacity(ranges.len() + tail.len());
    compare_numbers(ranges, &leaves, &mut code);
    code.extend(tail);
    Some(code)
}

/// One comparison for each range but the first; a jump is as far as `within_reach` has made sure of.
fn compare_numbers(ranges: &[(u32, Verdict)], leaves: &[(&Verdict, usize)], code: &mut Vec<sock_filter>) {
    if ranges.len() < 2 {
        return;
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let here = code.len();
    let to = |part: &[(u32, Verdict)], first: usize| match part {
        [(_, verdict)] => leaves.iter().find(|(known, _)| *known == verdict).map_or(first, |(_, at)| *at),
        _ => first,
    };
    // The comparisons of the lower half come next, those of the upper behind them.
    let (below, above) = (to(low, here + 1), to(high, here + low.len()));
    code.push(branch(GE, high[0].0, (above - here - 1) as u8, (below - here - 1) as u8));
    compare_numbers(low, leaves, code);
    compare_numbers(high, leaves, code);
}

fn leaf(verdict: &Verdict) -> Vec<sock_filter> {
    let mut code = Vec::new();
    for (conditions, action) in &verdict.rules {
        code.extend(rule(conditions, *action, verdict.wide));
    }
    code.push(insn(RETURN, verdict.otherwise));
    code
}

/// Where a comparison leads.
#[derive(Clone, Copy)]
enum To {
    /// To the next instruction.
    Next,
    /// Over so many.
    Over(u8),
    /// Out of the rule: it doesn't match.
    Out,
}

/// Returns `action` if every condition holds, else falls out at its end.
fn rule(conditions: &[Condition], action: u32, wide: bool) -> Vec<sock_filter> {
    let mut code: Vec<(u32, u32, To, To)> = Vec::new();
    for condition in conditions {
        compare(&mut code, condition, wide);
    }
    code.push((RETURN, action, To::Next, To::Next));
    let length = code.len();
    let resolve = |at: usize, to: To| match to {
        To::Next => 0,
        To::Over(n) => n,
        // At most six conditions of six instructions: always fits.
        To::Out => (length - at - 1) as u8,
    };
    let line = |(at, (op, k, jt, jf)): (usize, (u32, u32, To, To))| branch(op, k, resolve(at, jt), resolve(at, jf));
    code.into_iter().enumerate().map(line).collect()
}

/// Compares one argument; all of its 64 bits in a wide ABI, else the lower 32 (as libseccomp does).
fn compare(code: &mut Vec<(u32, u32, To, To)>, condition: &Condition, wide: bool) {
    use To::{Next, Out, Over};
    let low_at = ARGS + 8 * condition.index;
    let (mask, value) = (condition.mask, condition.value);
    let masked = mask != u64::MAX;
    let (low, high) = (value as u32, (value >> 32) as u32);
    // Lower half: load, maybe mask, compare.
    let low_length = if masked { 3 } else { 2 };
    if wide {
        code.push((LOAD, low_at + 4, Next, Next));
        if masked {
            code.push((AND, (mask >> 32) as u32, Next, Next));
        }
        match condition.test {
            Test::Eq => code.push((EQ, high, Next, Out)),
            Test::Ne => code.push((EQ, high, Next, Over(low_length))),
            Test::Gt | Test::Ge => {
                code.push((GT, high, Over(low_length + 1), Next));
                code.push((EQ, high, Next, Out));
            }
            Test::Lt | Test::Le => {
                code.push((GT, high, Out, Next));
                code.push((EQ, high, Next, Over(low_length)));
            }
        }
    }
    code.push((LOAD, low_at, Next, Next));
    if masked {
        code.push((AND, mask as u32, Next, Next));
    }
    code.push(match condition.test {
        Test::Eq => (EQ, low, Next, Out),
        Test::Ne => (EQ, low, Out, Next),
        Test::Gt => (GT, low, Next, Out),
        Test::Ge => (GE, low, Next, Out),
        Test::Lt => (GE, low, Out, Next),
        Test::Le => (GT, low, Out, Next),
    });
}
