-- Finishes a vCon: replaces its document if it changed, announces it, and ends its claim. Goes before the scripts that
-- finish.
-- KEYS: 1 the claims hash, then, after the lists of `claim`, the lists to push to.
-- ARGV: 1 lane; after the arguments of `claim`: 1 the claim's token, 2 the entry claimed, 3 the field of its progress,
--       4 context, 5 the context's time to live, 6 '1' if Redis holds anything about the entry,
--       7 the vCon's key, 8 how to compare its document: '' (not at all), 'text', 'json', or 'draft' (the lane has compared
--       it), 9 the text that must stand there, 10 the text to write, '' to write nothing; the key of a draft,
--       11 a time to live for the vCon's key or '', 12 all ingress lists, a line each, 13 the number of announcements, then
--       the UUID of each,
--       then the number of storages that failed, the time to live of their documents (0: unchanged), and for each: its dead
--       letter list, the hash of reasons, the UUID, the reason or ''.
-- Returns {1} if done, {2} if done and the document had been deleted meanwhile, {0} if the lane no longer holds the claim,
-- {'changed'} if another document stands under the vCon's key, {'large'} if it is too large to be compared here,
-- {'unwritten', error} if the server refuses the document, {'refused', list, kind} if a key to push to holds another type.
-- Nothing is done but for 1 and 2.

-- Queues a vCon for each storage that failed to save it. Does nothing if the document is gone: there is nothing to save.
local function write_letters(at)
  local letters, ttl = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  for i = at + 2, at + 1 + 4 * letters, 4 do
    local list, reasons, uuid, reason = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    local key = 'vcon:' .. uuid
    local left = redis.call('PTTL', key)
    if left ~= -2 then
      if type(redis.pcall('RPUSH', list, uuid)) == 'table' then
        redis.call('RPUSH', 'conserver:unreadable', '{"list":' .. cjson.encode(list) .. ',"uuid":"' .. uuid .. '"}')
      elseif reason == '' then
        -- It is backlog again: an earlier reason no longer counts.
        redis.pcall('HDEL', reasons, uuid)
      else
        redis.pcall('HSET', reasons, uuid, with_time(reason))
      end
      redis.pcall('SADD', 'conserver:letters', list)
      if left >= 0 and left < ttl * 1000 then redis.pcall('EXPIRE', key, ttl) end
    end
  end
end

local function finish()
  local lists = tonumber(ARGV[10])
  local at, pushes = 10 + lists, 4 + lists
  local key, how = ARGV[at + 7], ARGV[at + 8]
  local record = redis.call('HGET', KEYS[1], ARGV[1])
  if not is_held(record, ARGV[at + 1]) then
    if how == 'draft' then redis.call('DEL', ARGV[at + 10]) end
    return {0}
  end
  local outcome = 1
  if how == 'draft' then
    if redis.call('EXISTS', key) == 1 then
      write(key, how, ARGV[at + 10], ARGV[at + 12])
    else
      redis.call('DEL', ARGV[at + 10])
      outcome = 2
    end
  elseif how ~= '' then
    local text, now, is_large = ARGV[at + 10], stands(key, how)
    if is_large then return {'large'} end
    if not now then
      outcome = 2
    elseif now ~= text then
      -- The new text stands there already if an earlier try was refused later on.
      if now ~= ARGV[at + 9] then return {'changed'} end
      if text ~= '' then
        local refusal = write(key, how, text, ARGV[at + 12])
        if refusal then return {'unwritten', refusal} end
      end
    end
  end
  -- A full Redis refuses the first write of a script if it may take memory. This one takes none.
  redis.call('HDEL', KEYS[1], ARGV[1])
  local announcements = tonumber(ARGV[at + 13])
  for i = 1, announcements do
    local pushed = redis.pcall('RPUSH', KEYS[pushes + i], ARGV[at + 13 + i])
    if type(pushed) == 'table' then
      -- Undo it: the lane will try all of it again. The claim comes first, as the user may lack the right to `RPOP`.
      redis.call('HSET', KEYS[1], ARGV[1], record)
      for j = 1, i - 1 do redis.pcall('RPOP', KEYS[pushes + j]) end
      local kind = redis.call('TYPE', KEYS[pushes + i]).ok
      if kind ~= 'list' and kind ~= 'none' then return {'refused', KEYS[pushes + i], kind} end
      return pushed
    end
  end
  if ARGV[at + 4] ~= '' then
    for i = 1, announcements do
      local context = 'context:' .. KEYS[pushes + i] .. ':' .. ARGV[at + 13 + i]
      redis.pcall('RPUSH', context, ARGV[at + 4])
      redis.pcall('EXPIRE', context, ARGV[at + 5])
    end
  end
  if ARGV[at + 11] ~= '' then redis.call('EXPIRE', key, ARGV[at + 11]) end
  if ARGV[at + 14 + announcements] ~= '0' then write_letters(at + 14 + announcements) end
  if ARGV[at + 6] == '1' then
    for _, hash in ipairs({'conserver:deaths', 'conserver:lapses', 'conserver:tries'}) do
      redis.pcall('HDEL', hash, ARGV[at + 2])
    end
    redis.pcall('HDEL', 'conserver:progress', ARGV[at + 3])
  end
  return {outcome}
end

