-- What is longer is cut at once, to one byte more, so that later steps see that it was too long. Goes before the scripts
-- that need it.
local MOST_OF_ENTRY, MOST_OF_CONTEXT = 1024, 65536
-- A RedisJSON document that takes more memory is loaded outside the script.
local MOST_OF_JSON = 1048576

