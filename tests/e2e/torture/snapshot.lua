-- Where every vCon is at this instant, and every vCon that is nowhere, or in two places.
-- ARGV: the names of the instances.
-- Announced vCons are taken from their egress list and counted, as a consumer would.
-- Answers {journalled, waiting, claimed, dead letters, announced, faults}.

local places, faults, count = {}, {}, 0

local function found(uuid, place)
  if places[uuid] then
    faults[#faults + 1] = uuid .. ' is in ' .. places[uuid] .. ' and in ' .. place
  else
    count = count + 1
  end
  if redis.call('HEXISTS', 'torture:announced', uuid) == 1 then
    faults[#faults + 1] = uuid .. ' was announced and is in ' .. place
    count = count - 1
  end
  if redis.call('SISMEMBER', 'torture:journal', uuid) == 0 then
    faults[#faults + 1] = uuid .. ' was never pushed and is in ' .. place
  end
  places[uuid] = place
end

for _, uuid in ipairs(redis.call('LRANGE', 'done', 0, -1)) do
  redis.call('HINCRBY', 'torture:announced', uuid, 1)
end
redis.call('DEL', 'done')

local waiting = redis.call('LRANGE', 'default', 0, -1)
for _, uuid in ipairs(waiting) do found(uuid, 'its ingress list') end

local claimed = 0
for _, instance in ipairs(ARGV) do
  for worker = 1, 9 do
    local key = 'conserver:claims:' .. instance .. ':' .. worker
    local fields = redis.call('HGETALL', key)
    for i = 1, #fields, 2 do
      claimed = claimed + 1
      found(cjson.decode(fields[i + 1]).uuid, key .. ' lane ' .. fields[i])
    end
  end
end

local dead = redis.call('LRANGE', 'DLQ:default', 0, -1)
for _, uuid in ipairs(dead) do found(uuid, 'the dead letter list') end

local journalled = redis.call('SCARD', 'torture:journal')
local announced = redis.call('HLEN', 'torture:announced')
if count + announced ~= journalled then
  for _, uuid in ipairs(redis.call('SMEMBERS', 'torture:journal')) do
    if not places[uuid] and redis.call('HEXISTS', 'torture:announced', uuid) == 0 then
      faults[#faults + 1] = uuid .. ' is nowhere'
    end
  end
end
return {journalled, #waiting, claimed, #dead, announced, faults}
