local function pop(list) return redis.pcall('LPOP', list) end

