-- Returns every claim of a worker that has ended: to the head of its list, or, once too many workers have died on it, to the
-- dead letter queue. If several suspects were in work when the worker died, any of them may be the reason: none becomes a
-- dead letter for that, and each is worked on alone before its next death counts as its own. A claim whose list's key
-- holds another type goes to the claims of worker 0 until it can be returned. If the lease on the instance's name ran out,
-- nobody saw the worker die: that counts as a lapse.
-- KEYS: 1 the worker's claims hash, 2 the deaths hash, 3 the lease on its instance's name, 4 the lapses hash, 5 the claims
--       hash of worker 0, 6 the instance's set of workers.
-- ARGV: 1 how many deaths (or lapses) make a vCon poison (0: none), 2 the time to live of these counts, 3 that of contexts,
--       4 that of a dead letter's document (0: unchanged), 5 the name of the worker, 6 whether the suspects are 'all but'
--       certain vCons or 'these', or this is a 'lapse', 7 the record that the lease must have, '' if there must be no lease,
--       8 how the worker ended, 9 the UUIDs of those vCons, in lower case and separated by spaces, 10 the time to live of
--       documents, 11 that of progress.
-- Returns a flat list: entry, list, deaths (or lapses), 'returned', 'kept', 'poison' or 'unreadable', and so on. A claim
-- that worker 0 held before, and still holds, is not listed. If the lease has another record, returns that, '' if there is
-- none.

local UUID = '^' .. ('%x'):rep(8) .. '%-' .. (('%x'):rep(4) .. '%-'):rep(3) .. ('%x'):rep(12) .. '$'

local lease = redis.call('GET', KEYS[3]) or ''
if lease ~= ARGV[7] then return lease:sub(1, 4096) end

local is_lapse, is_kept = ARGV[6] == 'lapse', KEYS[1] == KEYS[5]
local counts = is_lapse and KEYS[4] or KEYS[2]

local out = {}
-- An entry that is no UUID may have any length. It is returned for the log only.
local function report(entry, list, count, what)
  for _, value in ipairs({entry:sub(1, MOST_OF_ENTRY), list, count, what}) do out[#out + 1] = value end
end

local claims = {}
local fields = redis.call('HGETALL', KEYS[1])
-- A full Redis refuses the first write of a script if it may take memory. This one takes none and changes nothing.
redis.call('HDEL', KEYS[1], '')
for i = 1, #fields, 2 do
  local claim = read_record(fields[i + 1])
  if claim then
    claim.lane, claim.record = fields[i], fields[i + 1]
    claims[#claims + 1] = claim
  else
    redis.call('RPUSH', 'conserver:unreadable', fields[i + 1])
    redis.call('HDEL', KEYS[1], fields[i])
    report(fields[i + 1], '', 0, 'unreadable')
  end
end
-- The oldest claim is pushed last, so that it is the first to be taken again.
table.sort(claims, function(a, b) return a.since > b.since end)

local function bury(claim, count, why)
  local reason = with_time('{"stage":"worker","error":' .. cjson.encode(why)
    .. ',"attempts":' .. count .. ',"worker":' .. cjson.encode(ARGV[5]) .. '}')
  -- An entry from the queue of a storage goes back there.
  local storage = claim.list:match('^DLQ:(storage:.+)$')
  local letters = storage and claim.list or 'DLQ:' .. claim.list
  if type(redis.pcall('RPUSH', letters, claim.uuid)) == 'table' then
    redis.call('RPUSH', 'conserver:unreadable', claim.record)
    report(claim.uuid, claim.list, count, 'unreadable')
    return
  end
  redis.pcall('HSET', 'conserver:dlq:' .. (storage or claim.list), claim.uuid, reason)
  redis.pcall('SADD', 'conserver:letters', letters)
  if claim.uuid:find(UUID) then
    if ARGV[4] ~= '0' then redis.pcall('EXPIRE', 'vcon:' .. claim.uuid, ARGV[4]) end
  end
  redis.pcall('HDEL', KEYS[2], claim.uuid)
  redis.pcall('HDEL', KEYS[4], claim.uuid)
  report(claim.uuid, claim.list, count, 'poison')
end

local named = {}
for uuid in ARGV[9]:gmatch('%S+') do named[uuid] = true end

local function too_often(count)
  if is_lapse then return count .. ' times the daemon that worked on it stopped showing itself' end
  return count .. ' workers died while they worked on it; how the last one ended: ' .. ARGV[8]
end

-- Puts an entry back at the head of its list. Returns false if the key holds another type.
local function put_back(claim)
  keep_alive('vcon:' .. claim.uuid, ARGV[10])
  if type(redis.pcall('LPUSH', claim.list, claim.uuid)) == 'table' then return false end
  put_back_context(claim.list, claim.uuid, claim.context, ARGV[3])
  return true
end

local suspects = 0
for _, claim in ipairs(claims) do
  claim.counted = not is_kept and (is_lapse or (named[claim.uuid:lower()] or false) == (ARGV[6] == 'these'))
  if claim.counted then suspects = suspects + 1 end
end
local in_doubt = ARGV[6] == 'all but' and suspects > 1

for _, claim in ipairs(claims) do
  local counted = claim.counted
  local limit, is_gone = tonumber(ARGV[1]), true
  local count
  if counted then
    count = redis.pcall('HINCRBY', counts, claim.uuid, 1)
    if type(count) ~= 'number' then -- not a number: reset to 1
      count = 1
      redis.pcall('HSET', counts, claim.uuid, count)
    end
    -- One below the limit, so that it is worked on alone. The first death always counts.
    local most = math.max(limit - 1, 1)
    if in_doubt and limit > 0 and count > most then
      count = most
      redis.pcall('HSET', counts, claim.uuid, count)
    end
  else
    local before = redis.pcall('HGET', counts, claim.uuid)
    count = type(before) == 'string' and tonumber(before) or 0
  end
  if counted and not in_doubt and limit > 0 and count >= limit then
    bury(claim, count, too_often(count))
  elseif put_back(claim) then
    report(claim.uuid, claim.list, count, 'returned')
  elseif is_kept then
    is_gone = false
  else
    local field = KEYS[1]:match('%d+$') .. ':' .. claim.lane .. ':' .. redis.sha1hex(claim.record)
    redis.call('HSET', KEYS[5], field, claim.record)
    redis.call('SADD', KEYS[6], 0)
    report(claim.uuid, claim.list, count, 'kept')
  end
  -- Nobody knows how far it came, so it begins anew; also if it is on its list twice, and another claim of it is released.
  local field, key = claim.list .. '\n' .. claim.uuid, 'vcon:' .. claim.uuid
  redis.pcall('HDEL', 'conserver:progress', field)
  if claim.uuid:find(UUID) and redis.call('EXISTS', key) == 1 then
    keep_progress(field, key, VOID, '', ARGV[11])
  end
  if is_gone then redis.call('HDEL', KEYS[1], claim.lane) end
end
if #claims > 0 then redis.pcall('EXPIRE', counts, ARGV[2]) end
return out
