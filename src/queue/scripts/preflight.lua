-- Tries every command that scripts and lanes need, on keys of its own, and the rights to other keys. Leaves nothing behind.
-- KEYS: two strings, a list, a hash, a set, a sorted set, that nobody else uses.
-- ARGV: 1 if documents are added to a sorted set, 2 if slots are leased (3: both), 1 if the sorted set shows how documents are stored, then keys to which
--       the rights are tried: nothing is written to those.
-- Returns {commands that are refused, keys that are refused}.

local first, second, list, hash, set, sorted = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]

-- Whether an error is a refusal, which Redis words in many ways. Other errors, such as that of a full server, do not count.
local function is_refused(answer)
  if type(answer) ~= 'table' or not answer.err then return false end
  local err = answer.err
  return err:find('NOPERM') or err:find('o permissions') or err:find('executing the script') or err:find('nknown')
    or err:find('not allowed from script')
end

local refused, is_known = {}, {}
local function try(command, ...)
  if is_refused(redis.pcall(command, ...)) and not is_known[command] then
    is_known[command] = true
    refused[#refused + 1] = command
  end
end

try('DEL', first)
try('SET', first, 'text', 'PX', 60000)
try('GET', first)
try('STRLEN', first)
try('GETRANGE', first, 0, 1)
try('TYPE', first)
try('EXISTS', first)
try('TTL', first)
try('PTTL', first)
try('EXPIRE', first, 60)
try('PEXPIRE', first, 60000)
try('RENAME', first, second)
try('PERSIST', second)
try('DEL', second)

try('RPUSH', list, 'a', 'b')
try('LPUSH', list, 'c')
try('EXPIRE', list, 60)
try('LLEN', list)
try('LINDEX', list, 0)
try('LRANGE', list, 0, 1)
try('LPOS', list, 'a')
try('LREM', list, 1, 'a')
try('LTRIM', list, 0, 1)
try('LPOP', list)
try('RPOP', list)

try('HSET', hash, 'field', 1)
try('EXPIRE', hash, 60)
try('HINCRBY', hash, 'field', 1)
try('HGET', hash, 'field')
try('HMGET', hash, 'field')
try('HGETALL', hash)
try('HEXISTS', hash, 'field')
try('HLEN', hash)
try('HSCAN', hash, 0)
try('SCAN', 0, 'COUNT', 1)
try('HDEL', hash, 'field')

try('SADD', set, 'member')
try('EXPIRE', set, 60)
try('SMEMBERS', set)
try('SREM', set, 'member')
if ARGV[1] ~= '0' then
  try('ZADD', sorted, 1, 'member')
  try('EXPIRE', sorted, 60)
end
if ARGV[1] >= '2' then
  try('ZCARD', sorted)
  try('ZRANGE', sorted, 0, 0)
  try('ZRANGEBYSCORE', sorted, 0, 1)
  try('ZREM', sorted, 'member')
  try('ZREMRANGEBYSCORE', sorted, 0, 1)
end
if ARGV[2] == '1' and not is_refused(redis.pcall('JSON.GET', second)) then try('ZREVRANGE', sorted, 0, 1) end
try('TIME')
for _, key in ipairs(KEYS) do redis.pcall('DEL', key) end

local closed = {}
for i = 3, #ARGV do
  local key = ARGV[i]
  -- On a key of another type this is an error; in a hash, no field has that name.
  local is_closed = not is_known.HDEL and is_refused(redis.pcall('HDEL', key, ''))
    or not is_known.TYPE and is_refused(redis.pcall('TYPE', key))
  if is_closed then closed[#closed + 1] = key end
end
return {refused, closed}
