# What a Rack app sees of the token's header and cookie.
require "base64"
require "cgi"
require "json"
require "rack"

run lambda { |env|
  header = env.key?("HTTP_X_VIEWER_SESSION") ? [env["HTTP_X_VIEWER_SESSION"]] : []
  cookie = []
  value = Rack::Request.new(env).cookies["vs"]
  cookie << value.to_s unless value.nil?
  CGI::Cookie.parse(env["HTTP_COOKIE"].to_s).each { |name, values| cookie.concat(values.to_a) if name == "vs" }
  body = JSON.generate({ header: header.map { |v| Base64.strict_encode64(v) }, cookie: cookie.map { |v| Base64.strict_encode64(v.to_s) } })
  [200, { "Content-Type" => "application/json", "Content-Length" => body.bytesize.to_s }, [body]]
}
