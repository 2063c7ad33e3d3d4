//! One Lua script: called by its hash, and in full if the server does not know it.
//!
//! `EVAL` keeps the script as `SCRIPT LOAD` does, which a user may not be allowed.

use redis::{Cmd, ConnectionLike, FromRedisValue, RedisResult, ToRedisArgs};

/// A script.
pub(super) struct Script {
    code: &'static str,
    hash: String,
}

/// A call of a script, with its keys and arguments so far.
pub(super) struct Call<'a> {
    script: &'a Script,
    keys: Vec<Vec<u8>>,
    arguments: Vec<Vec<u8>>,
}

impl Script {
    /// This code.
    pub fn new(code: &'static str) -> Self {
        let hash = redis::Script::new(code).get_hash().to_owned();
        Self { code, hash }
    }

    pub fn hash(&self) -> &str {
        &self.hash
    }

    pub fn code(&self) -> &'static str {
        self.code
    }

    /// A call without keys and arguments.
    pub fn call(&self) -> Call<'_> {
        Call {
            script: self,
            keys: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// A call with its first key.
    pub fn key(&self, key: impl ToRedisArgs) -> Call<'_> {
        let mut call = self.call();
        call.key(key);
        call
    }

    /// The beginning of a command that calls the script in full, with so many keys.
    pub fn in_full(&self, keys: usize) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(self.code).arg(keys);
        command
    }
}

impl Call<'_> {
    /// Adds a key, or several.
    pub fn key(&mut self, key: impl ToRedisArgs) -> &mut Self {
        key.write_redis_args(&mut self.keys);
        self
    }

    /// Adds an argument, or several.
    pub fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        argument.write_redis_args(&mut self.arguments);
        self
    }

    /// The command that calls the script by its hash.
    pub fn by_hash(&self) -> Cmd {
        self.command("EVALSHA", &self.script.hash)
    }

    /// The command that calls the script in full.
    pub fn in_full(&self) -> Cmd {
        self.command("EVAL", self.script.code)
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let mut command = redis::cmd(name);
        command.arg(script).arg(self.keys.len());
        command.arg(&self.keys).arg(&self.arguments);
        command
    }

    /// Calls the script.
    pub fn invoke<T: FromRedisValue>(&self, connection: &mut dyn ConnectionLike) -> RedisResult<T> {
        match self.by_hash().query(connection) {
            Err(error) if is_missing(&error) => self.in_full().query(connection),
            answer => answer,
        }
    }
}

/// Whether the server does not have the script that was called.
pub(super) fn is_missing(error: &redis::RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript)
}
