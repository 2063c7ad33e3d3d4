-- How far a vCon has come whose claim was released before its finish: `conserver:progress`, by list and UUID. A record
-- holds the digest of the document, the document's key, and what the lane wrote. It is valid as long as the document is the
-- same. Goes before the scripts that need it.

-- A longer text does not go through the script interpreter: its length takes the place of its digest.
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

-- The digests that this script has computed: one of a large RedisJSON document takes Redis a quarter of a second.
local digests = {}

local function digest(key)
  if not digests[key] then digests[key] = digest_of(key) end
  return digests[key]
end

-- The recorded progress of an entry, if it is still valid, else ''.
local function kept_progress(field)
  local kept = redis.pcall('HGET', 'conserver:progress', field)
  if type(kept) ~= 'string' then return '' end
  local was, key, progress = kept:match('^(%S+) (%S+) (.*)$')
  return was and digest(key) == was and progress or ''
end

-- The progress of a vCon that begins anew: nothing recorded before counts.
local VOID = '!'

-- Records how far a vCon has come; '' changes nothing. `handed` is the progress that its claim got. If another progress is
-- recorded by now, the vCon is on its list more than once, and another claim of it has ended meanwhile. Nobody knows which
-- of the two saved its document last to a storage. So unless both say the same, a '^' before the progress says that all
-- storages must save it again.
local function keep_progress(field, key, progress, handed, time)
  if progress == '' then return end
  local kept = kept_progress(field)
  if kept ~= '' and kept ~= handed and kept ~= progress and progress ~= VOID then progress = '^' .. progress end
  redis.pcall('HSET', 'conserver:progress', field, digest(key) .. ' ' .. key .. ' ' .. progress)
  redis.pcall('EXPIRE', 'conserver:progress', time)
end

-- Whether another document stands there than the one that the progress was made with. False for long ones, which are not
-- compared.
local function is_outdated(key, progress, text)
  if progress == '' or progress == VOID then return false end
  local now = digest(key)
  return #now == 40 and now ~= redis.sha1hex(text)
end

-- Called before a lane writes a document. Returns a function that makes the records of progress which are valid with the
-- old text valid with the new one, in each of these lists. What a chain writes is no new version, so no link runs again.
-- But the storages of these records have the old text: a '~' before the progress says so.
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

