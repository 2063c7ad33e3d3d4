-- Takes the next entry of a list. `claim` calls it for each list, in the order of its keys.

-- How many lists one command looks at, to skip empty ones: with 1,000 lists, one command for each takes three times as
-- long.
local BLOCK = 50
local looked, empty = 0, 0

local function pop(list)
  looked = looked + 1
  if looked <= empty then return false end
  -- Four other keys come before the lists.
  local first = 4 + looked
  if (looked - 1) % BLOCK == 0 and KEYS[first] == list and #KEYS >= first + BLOCK - 1 then
    if redis.pcall('EXISTS', unpack(KEYS, first, first + BLOCK - 1)) == 0 then
      empty = looked + BLOCK - 1
      return false
    end
  end
  return redis.pcall('LPOP', list)
end

