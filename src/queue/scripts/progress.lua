-- How far a vCon has come that was let go before its end: `conserver:progress`, by list and UUID. A record is good as
-- long as the document is the one that it was kept with; it has that document's digest, its key, and the lane's words.
-- Goes before the scripts that need it.

-- A longer text does not go through the script interpreter: of that, the length counts.
local LONGEST = 1048576

local function digest_of(key)
  local size = redis.pcall('STRLEN', key)
  if type(size) == 'number' then
    if size > LONGEST then return 'length-' .. size end
    return redis.sha1hex(redis.call('GET', key) or '')
  end
  size = redis.pcall('JSON.DEBUG', 'MEMORY', key)
  if type(size) ~= 'number' then return 'none' end
  if size > LONGEST then return 'size-' .. size end
  local text = redis.pcall('JSON.GET', key)
  return type(text) == 'string' and redis.sha1hex(text) or 'none'
end

-- To look at a large RedisJSON document takes Redis a quarter of a second: once in a script, unless it writes one.
local digests = {}

local function digest(key)
  if not digests[key] then digests[key] = digest_of(key) end
  return digests[key]
end

-- What is kept of an entry and still good, else ''.
local function kept_progress(field)
  local kept = redis.pcall('HGET', 'conserver:progress', field)
  if type(kept) ~= 'string' then return '' end
  local was, key, progress = kept:match('^(%S+) (%S+) (.*)$')
  return was and digest(key) == was and progress or ''
end

-- Words that say no more than that nothing known before counts: the vCon begins anew.
local VOID = '!'

-- Keeps how far a vCon has come; '' leaves what is kept. `handed` is what its claim was handed. If something else is kept
-- by now, the vCon is more than once on its list, and another claim of it has ended meanwhile. Which of the two was the
-- last to give a storage its document, nobody knows: unless both say the same, all storages are to be given it again,
-- which a '^' before the lane's words tells.
local function keep_progress(field, key, progress, handed, time)
  if progress == '' then return end
  local kept = kept_progress(field)
  if kept ~= '' and kept ~= handed and kept ~= progress and progress ~= VOID then progress = '^' .. progress end
  redis.pcall('HSET', 'conserver:progress', field, digest(key) .. ' ' .. key .. ' ' .. progress)
  redis.pcall('EXPIRE', 'conserver:progress', time)
end

-- Whether another document stands there than the one that the progress was made with. Of a long one nobody knows.
local function is_outdated(key, progress, text)
  if progress == '' or progress == VOID then return false end
  local now = digest(key)
  return #now == 40 and now ~= redis.sha1hex(text)
end

-- Before a lane writes a document: returns what makes the records that were kept with the old text good with the new
-- one, in each of these lists. What a chain writes is no new version: no link runs again. But the storages of these
-- records have the old text, which a '~' before the lane's words tells.
local function progress_of_writer(key, lists)
  if redis.call('EXISTS', 'conserver:progress') == 0 then return function() end end
  local before, uuid = digest(key), key:sub(6)
  return function()
    digests[key] = nil
    local after = digest(key)
    for list in lists:gmatch('[^\n]+') do
      local field = list .. '\n' .. uuid
      local kept = redis.pcall('HGET', 'conserver:progress', field)
      if type(kept) == 'string' and kept:sub(1, #before + 1) == before .. ' ' then
        redis.pcall('HSET', 'conserver:progress', field, (kept:gsub('^%S+ (%S+) ~?', after .. ' %1 ~')))
      end
    end
  end
end

