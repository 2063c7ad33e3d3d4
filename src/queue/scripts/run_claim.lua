return claim(false)
