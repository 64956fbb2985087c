//! A machine for the part of pickle that PyTorch writes (protocols 2 to 5). Nothing is executed: a call
//! of a function becomes a value that says which function and with what.
//!
//! The machine does not recurse, and its values are numbers of places in one table, so that neither
//! depth nor cycles can hurt. Texts stay where they are in the pickle. A pickle can therefore not make
//! more than a table of [`MOST_VALUES`] entries, whatever it holds.

use diffaug::{Error, Result};
use std::ops::Range;

/// Values that a pickle makes at most.
const MOST_VALUES: usize = 2_000_000;
/// References between them (items of lists, tuples and dictionaries; the stack; the memo) at most.
const MOST_REFERENCES: usize = 8_000_000;

/// The place of a value in the table.
pub type Id = u32;

/// What a pickle makes. Texts are places in the pickle.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`, and whatever tensors have no use for.
    Other,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A text.
    Text(Range<usize>),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list or a set.
    List(Vec<Id>),
    /// A dictionary, in order.
    Dict(Vec<(Id, Id)>),
    /// A function or class: its module and its name.
    Global(Range<usize>, Range<usize>),
    /// What lies outside of the pickle: a storage.
    Outside(Id),
    /// The result of calling the first with the second.
    Call(Id, Id),
}

/// The values of a pickle.
#[derive(Debug)]
pub struct Values<'a> {
    bytes: &'a [u8],
    all: Vec<Value>,
    /// What the pickle stands for.
    pub root: Id,
}

impl<'a> Values<'a> {
    /// The value at `id`.
    pub fn get(&self, id: Id) -> &Value {
        self.all.get(id as usize).unwrap_or(&Value::Other)
    }

    /// The text at `id`, if it is one.
    pub fn text(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Value::Text(place) => self.read(place),
            _ => None,
        }
    }

    /// The module and the name of the function or class at `id`, if it is one.
    pub fn global(&self, id: Id) -> Option<(&'a str, &'a str)> {
        match self.get(id) {
            Value::Global(module, name) => Some((self.read(module)?, self.read(name)?)),
            _ => None,
        }
    }

    fn read(&self, place: &Range<usize>) -> Option<&'a str> {
        std::str::from_utf8(self.bytes.get(place.clone())?).ok()
    }
}

/// Reads the pickle `bytes`, up to the end that it names.
///
/// # Errors
/// Naming the byte at which it is broken, asks for what PyTorch does not write, or grows too large.
pub fn run(bytes: &[u8]) -> Result<Values<'_>> {
    let mut machine = Machine {
        bytes,
        at: 0,
        all: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        references: 0,
    };
    loop {
        let at = machine.at;
        let code = machine.byte();
        match code.and_then(|code| machine.step(code)) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                return Err(error.context(format!("the pickle cannot be read at byte {at}")));
            }
        }
    }
    let root = machine.pop()?;
    Ok(Values {
        bytes,
        all: machine.all,
        root,
    })
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    all: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: Vec<Option<Id>>,
    references: usize,
}

fn error(what: &str) -> Error {
    Error::model(what)
}

impl Machine<'_> {
    /// Whether there is a next one.
    fn step(&mut self, code: u8) -> Result<bool> {
        match code {
            b'.' => return Ok(false),
            0x80 => self.protocol()?,
            // The length of a frame, which tells nothing.
            0x95 => {
                self.take(8)?;
            }
            b'(' => {
                self.count(1)?;
                self.marks.push(self.stack.len());
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.above_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.put(top)?;
            }
            b'N' | 0x98 => self.push(Value::Other)?,
            0x88 | 0x89 => self.push(Value::Bool(code == 0x88))?,
            b'J' | b'K' | b'M' | 0x8a | 0x8b | b'G' => self.number(code)?,
            b'X' | b'U' | b'T' | b'B' | b'C' | 0x8c | 0x8d | 0x8e | 0x96 => self.text(code)?,
            b')' | b't' | 0x85 | 0x86 | 0x87 => self.tuple(code)?,
            b']' | b'l' | 0x8f | 0x91 | b'a' | b'e' | 0x90 => self.list(code)?,
            b'}' | b'd' | b's' | b'u' => self.dict(code)?,
            b'c' | 0x93 => self.global(code)?,
            b'R' | 0x81 | 0x92 | b'b' => self.call(code)?,
            b'Q' => {
                let name = self.pop()?;
                self.push(Value::Outside(name))?;
            }
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.remember(code)?,
            other => {
                let message = format!("the instruction {other:#04x} is none that PyTorch writes");
                return Err(Error::unsupported(message));
            }
        }
        Ok(true)
    }

    fn protocol(&mut self) -> Result<()> {
        match self.byte()? {
            2..=5 => Ok(()),
            other => Err(error(&format!("its protocol is {other}, expected 2 to 5"))),
        }
    }

    fn number(&mut self, code: u8) -> Result<()> {
        let value = match code {
            b'J' => i64::from(self.little(4)? as u32 as i32),
            b'K' => self.little(1)? as i64,
            b'M' => self.little(2)? as i64,
            b'G' => {
                self.take(8)?;
                return self.push(Value::Other);
            }
            _ => {
                let len = self.little(if code == 0x8a { 1 } else { 4 })?;
                let place = self.take(len)?;
                let mut bytes = &self.bytes[place];
                let negative = bytes.last().is_some_and(|last| *last > 127);
                let filling = if negative { 0xff } else { 0 };
                while bytes.len() > 8 && bytes.last() == Some(&filling) {
                    bytes = &bytes[..bytes.len() - 1];
                }
                if bytes.len() > 8 || bytes.last().is_some_and(|last| (*last > 127) != negative) {
                    return self.push(Value::Other);
                }
                let start: i64 = if negative { -1 } else { 0 };
                let join = |n: i64, byte: &u8| n << 8 | i64::from(*byte);
                bytes.iter().rev().fold(start, join)
            }
        };
        self.push(Value::Int(value))
    }

    fn text(&mut self, code: u8) -> Result<()> {
        let width = match code {
            b'U' | b'C' | 0x8c => 1,
            0x8d | 0x8e | 0x96 => 8,
            _ => 4,
        };
        let len = self.little(width)?;
        let place = self.take(len)?;
        self.push(Value::Text(place))
    }

    fn tuple(&mut self, code: u8) -> Result<()> {
        let items = match code {
            b')' => Vec::new(),
            b't' => self.above_mark()?,
            _ => self.last(usize::from(code - 0x84))?,
        };
        self.count(items.len())?;
        self.push(Value::Tuple(items))
    }

    fn list(&mut self, code: u8) -> Result<()> {
        match code {
            b']' | 0x8f => self.push(Value::List(Vec::new())),
            b'l' | 0x91 => {
                let items = self.above_mark()?;
                self.count(items.len())?;
                self.push(Value::List(items))
            }
            _ => {
                let items = match code {
                    b'a' => self.last(1)?,
                    _ => self.above_mark()?,
                };
                self.count(items.len())?;
                let target = self.top()?;
                // Of other values, calls among them, nobody asks for the items.
                if let Some(Value::List(all)) = self.all.get_mut(target as usize) {
                    all.extend(items);
                }
                Ok(())
            }
        }
    }

    fn dict(&mut self, code: u8) -> Result<()> {
        let items = match code {
            b'}' => Vec::new(),
            b's' => self.last(2)?,
            _ => self.above_mark()?,
        };
        if !items.len().is_multiple_of(2) {
            return Err(error("a key of a dictionary has no value"));
        }
        self.count(items.len())?;
        let pairs: Vec<(Id, Id)> = items
            .chunks_exact(2)
            .map(|pair| (pair[0], pair[1]))
            .collect();
        if matches!(code, b'}' | b'd') {
            return self.push(Value::Dict(pairs));
        }
        let target = self.top()? as usize;
        let called = match self.all.get(target) {
            Some(Value::Call(function, _)) => Some(*function),
            _ => None,
        };
        // An ordered dictionary is a call of its class, and filled afterwards.
        if let Some(function) = called
            && self.is_dict(function)
        {
            self.all[target] = Value::Dict(Vec::new());
        }
        if let Some(Value::Dict(all)) = self.all.get_mut(target) {
            all.extend(pairs);
        }
        Ok(())
    }

    /// Whether calling `function` makes a dictionary.
    fn is_dict(&self, function: Id) -> bool {
        let Some(Value::Global(module, name)) = self.all.get(function as usize) else {
            return false;
        };
        let name = &self.bytes[name.clone()];
        &self.bytes[module.clone()] == b"collections"
            && (name == b"OrderedDict" || name == b"defaultdict")
    }

    fn global(&mut self, code: u8) -> Result<()> {
        if code == b'c' {
            let (module, name) = (self.line()?, self.line()?);
            return self.push(Value::Global(module, name));
        }
        let names = self.last(2)?;
        let mut names = names.iter().map(|name| match self.all.get(*name as usize) {
            Some(Value::Text(place)) => Ok(place.clone()),
            _ => Err(error("the name of a function is no text")),
        });
        match (names.next().transpose()?, names.next().transpose()?) {
            (Some(module), Some(name)) => self.push(Value::Global(module, name)),
            _ => Err(error("the name of a function is missing")),
        }
    }

    fn call(&mut self, code: u8) -> Result<()> {
        let count = if code == 0x92 { 3 } else { 2 };
        let parts = self.last(count)?;
        // A state that is set afterwards (`b`) tells nothing of tensors.
        match code {
            b'b' => self.put(parts[0]),
            _ => self.push(Value::Call(parts[0], parts[1])),
        }
    }

    fn remember(&mut self, code: u8) -> Result<()> {
        let place = match code {
            0x94 => self.memo.len(),
            b'q' | b'h' => self.little(1)? as usize,
            _ => self.little(4)? as usize,
        };
        if matches!(code, b'h' | b'j') {
            let known = self.memo.get(place).copied().flatten();
            let known = known.ok_or_else(|| error("it asks for a value that it has not kept"))?;
            return self.put(known);
        }
        // Writers count without gaps.
        if place > self.memo.len() + 65_536 {
            return Err(error(&format!("it keeps a value at place {place}")));
        }
        let top = self.top()?;
        if place >= self.memo.len() {
            self.count(place + 1 - self.memo.len())?;
            self.memo.resize(place + 1, None);
        }
        self.memo[place] = Some(top);
        Ok(())
    }

    fn push(&mut self, value: Value) -> Result<()> {
        if self.all.len() >= MOST_VALUES {
            return Err(error(&format!("it makes more than {MOST_VALUES} values")));
        }
        self.all.push(value);
        self.put(self.all.len() as Id - 1)
    }

    fn put(&mut self, id: Id) -> Result<()> {
        self.count(1)?;
        self.stack.push(id);
        Ok(())
    }

    /// Counts references, which are never given back.
    fn count(&mut self, more: usize) -> Result<()> {
        self.references += more;
        match self.references > MOST_REFERENCES {
            true => Err(error(&format!(
                "it makes more than {MOST_REFERENCES} references"
            ))),
            false => Ok(()),
        }
    }

    fn top(&self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => Ok(self.stack[self.stack.len() - 1]),
            false => Err(error("its stack is empty")),
        }
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// The last `count` values, taken off the stack.
    fn last(&mut self, count: usize) -> Result<Vec<Id>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self
            .stack
            .len()
            .checked_sub(count)
            .filter(|start| *start >= floor)
        {
            Some(start) => Ok(self.stack.split_off(start)),
            None => Err(error("its stack is empty")),
        }
    }

    /// The values behind the last mark, taken off the stack with it.
    fn above_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| error("it has no mark"))?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.bytes[self.take(1)?][0])
    }

    /// The place of the next `count` bytes.
    fn take(&mut self, count: u64) -> Result<Range<usize>> {
        let left = (self.bytes.len() - self.at) as u64;
        if count > left {
            return Err(error(&format!(
                "{count} bytes are expected and {left} are left"
            )));
        }
        let place = self.at..self.at + count as usize;
        self.at = place.end;
        Ok(place)
    }

    /// A number of `count` bytes.
    fn little(&mut self, count: u64) -> Result<u64> {
        let place = self.take(count)?;
        let join = |n: u64, byte: &u8| n << 8 | u64::from(*byte);
        Ok(self.bytes[place].iter().rev().fold(0, join))
    }

    /// The place of the rest of the line.
    fn line(&mut self) -> Result<Range<usize>> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|byte| *byte == b'\n');
        let len = len.ok_or_else(|| error("a name has no end"))?;
        let place = self.at..self.at + len;
        self.at = place.end + 1;
        Ok(place)
    }
}
