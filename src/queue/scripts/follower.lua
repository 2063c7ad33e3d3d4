-- What the scripts of followers have in common. Goes before them, and after `alive`.

-- Why nothing can be pushed onto a list, if so: something else has its key.
local function no_list(key)
  local kind = redis.call('TYPE', key).ok
  if kind == 'list' or kind == 'none' then return nil end
  return key .. ' holds a ' .. kind .. ', not a list'
end

-- Takes a UUID out of those that are still to be fetched; false if another instance has been faster. This takes no
-- memory, so that a full Redis does not refuse it, nor what comes after it.
local function take(waiting, tries, uuid)
  if redis.call('LREM', waiting, 0, uuid) == 0 then return false end
  redis.pcall('HDEL', tries, uuid)
  return true
end

-- Notes which document was pulled: one that comes again with the same content is no new version.
local function note_pulled(key, digest, time)
  redis.pcall('SET', key, digest, 'EX', time)
end
