-- Where every vCon is at this instant, and every vCon that is nowhere, or in two places: each time that one is pushed
-- onto a list, it is in that list, in a claim or a dead letter of it, or announced.
-- ARGV: instances; most wake tokens; chains, each with its ingress list, its egress list, the set of what was pushed
-- onto the one, and what is to be added to which set when it was announced on the other; queues of storages. As JSON.
-- Announced vCons are taken from their egress lists and counted, as a consumer would.
-- Returns {pushed, waiting, claimed, dead letters, announced, backlog, records of progress, faults}.

local terms = cjson.decode(ARGV[1])
local faults, chains = {}, {}
local pushed, waiting, claimed, dead, announced, backlog = 0, 0, 0, 0, 0, 0

local function found(chain, uuid, place)
  local places = chain.places
  if places[uuid] then
    faults[#faults + 1] = uuid .. ' is in ' .. places[uuid] .. ' and in ' .. place
  else
    chain.count = chain.count + 1
  end
  if redis.call('HEXISTS', chain.announced, uuid) == 1 then
    faults[#faults + 1] = uuid .. ' was announced on ' .. chain.egress .. ' and is in ' .. place
    chain.count = chain.count - 1
  end
  if redis.call('SISMEMBER', chain.pushed, uuid) == 0 then
    faults[#faults + 1] = uuid .. ' was never pushed and is in ' .. place
  end
  places[uuid] = place
end

for _, chain in ipairs(terms.chains) do
  chain.places, chain.count = {}, 0
  chains[chain.list] = chain
  for _, uuid in ipairs(redis.call('LRANGE', chain.egress, 0, -1)) do
    redis.call('HINCRBY', chain.announced, uuid, 1)
    if chain.chosen and redis.call('SISMEMBER', chain.chosen, uuid) == 1 then
      redis.call('SADD', chain.chosen_are_pushed, uuid)
    end
  end
  redis.call('DEL', chain.egress)
end

for _, chain in ipairs(terms.chains) do
  local entries = redis.call('LRANGE', chain.list, 0, -1)
  waiting = waiting + #entries
  for _, uuid in ipairs(entries) do found(chain, uuid, 'list ' .. chain.list) end
  local letters = redis.call('LRANGE', 'DLQ:' .. chain.list, 0, -1)
  dead = dead + #letters
  for _, uuid in ipairs(letters) do found(chain, uuid, 'DLQ:' .. chain.list) end
end

for _, storage in ipairs(terms.storages) do
  local reasons = redis.call('HLEN', 'conserver:dlq:storage:' .. storage)
  dead, backlog = dead + reasons, backlog + redis.call('LLEN', 'DLQ:storage:' .. storage) - reasons
end

for _, instance in ipairs(terms.instances) do
  for worker = 1, 9 do
    local key = 'conserver:claims:' .. instance .. ':' .. worker
    local fields = redis.call('HGETALL', key)
    for i = 1, #fields, 2 do
      claimed = claimed + 1
      local claim = cjson.decode(fields[i + 1])
      local place = key .. ' lane ' .. fields[i] .. ' from list ' .. claim.list
      if chains[claim.list] then
        found(chains[claim.list], claim.uuid, place)
      elseif not claim.list:find('^DLQ:storage:') then
        faults[#faults + 1] = claim.uuid .. ' is in ' .. place
      end
    end
  end
  local tokens = redis.call('LLEN', 'conserver:wake:' .. instance)
  if tokens > terms.most_tokens then
    faults[#faults + 1] = tokens .. ' wake tokens for ' .. instance
  end
end

for _, chain in ipairs(terms.chains) do
  local all, done = redis.call('SCARD', chain.pushed), redis.call('HLEN', chain.announced)
  pushed, announced = pushed + all, announced + done
  if chain.count + done ~= all then
    for _, uuid in ipairs(redis.call('SMEMBERS', chain.pushed)) do
      if not chain.places[uuid] and redis.call('HEXISTS', chain.announced, uuid) == 0 then
        faults[#faults + 1] = uuid .. ' was pushed onto ' .. chain.list .. ' and is nowhere'
      end
    end
  end
end
return {pushed, waiting, claimed, dead, announced, backlog, redis.call('HLEN', 'conserver:progress'), faults}
