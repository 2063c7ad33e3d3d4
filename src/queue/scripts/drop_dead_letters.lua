-- Removes all copies of an entry from a dead letter queue, or some of the oldest entries, and everything that Redis holds
-- about them.
-- KEYS: the dead letter list, the hash of reasons; for an ingress list also the deaths, tries and lapses hashes.
-- ARGV: '1' to delete documents as well; how many of the oldest, or 'this' and then the entry. If it must have a reason,
-- also that reason or '', and how many bytes of it are compared.
-- Returns how many copies were removed, or that the key holds another type.

local UUID = '^' .. ('%x'):rep(8) .. '%-' .. (('%x'):rep(4) .. '%-'):rep(3) .. ('%x'):rep(12) .. '$'

local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'list' and kind ~= 'none' then return KEYS[1] .. ' holds a ' .. kind .. ', not a list' end

local function forget(entry)
  for i = 2, #KEYS do redis.pcall('HDEL', KEYS[i], entry) end
  -- Whoever pushes the vCon again later wants all its links to run.
  if #KEYS > 2 then redis.pcall('HDEL', 'conserver:progress', KEYS[1]:sub(#'DLQ:' + 1) .. '\n' .. entry) end
  if ARGV[1] == '1' and entry:find(UUID) then redis.call('DEL', 'vcon:' .. entry) end
end

if ARGV[2] == 'this' then
  if ARGV[4] then
    local reason = redis.pcall('HGET', KEYS[2], ARGV[3])
    if type(reason) ~= 'string' then reason = '' end
    if reason:sub(1, ARGV[5]) ~= ARGV[4] then return 0 end
  end
  local dropped = redis.call('LREM', KEYS[1], 0, ARGV[3])
  if dropped > 0 then forget(ARGV[3]) end
  return dropped
end
-- The entries stay on the server: anybody may have pushed them, of any length.
for dropped = 0, tonumber(ARGV[2]) - 1 do
  local entry = redis.call('LPOP', KEYS[1])
  if not entry then return dropped end
  forget(entry)
end
return tonumber(ARGV[2])
