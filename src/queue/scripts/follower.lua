-- What the scripts of followers share. Goes before them, and after `extend_ttl`.

-- Why nothing can be pushed onto a list, or nil: its key holds another type.
local function no_list(key)
  local kind = redis.call('TYPE', key).ok
  if kind == 'list' or kind == 'none' then return nil end
  return key .. ' holds a ' .. kind .. ', not a list'
end

-- Removes a UUID from those to fetch. Returns false if another instance was faster. Takes no memory, so that a full Redis
-- refuses neither this nor what comes after it.
local function take(waiting, tries, uuid)
  if redis.call('LREM', waiting, 0, uuid) == 0 then return false end
  redis.pcall('HDEL', tries, uuid)
  return true
end

-- Records which document was pulled. One that comes again with the same content is no new version.
local function note_pulled(key, digest, time)
  redis.pcall('SET', key, digest, 'EX', time)
end
