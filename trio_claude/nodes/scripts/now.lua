-- Redis' clock in milliseconds: all that is decided by time is decided by this clock.
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
