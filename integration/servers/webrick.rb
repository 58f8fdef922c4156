# What a WEBrick servlet sees of the token's header and cookie.
require "base64"
require "json"
require "webrick"

host, port = ARGV[0].split(":")
server = WEBrick::HTTPServer.new(BindAddress: host, Port: port.to_i, AccessLog: [], Logger: WEBrick::Log.new(File::NULL))
server.mount_proc("/") do |request, response|
  header = Array(request["X-Viewer-Session"])
  request.meta_vars.each { |name, value| header << value if name == "HTTP_X_VIEWER_SESSION" }
  cookie = request.cookies.select { |c| c.name == "vs" }.map(&:value)
  response["Content-Type"] = "application/json"
  response.body = JSON.generate({ header: header.map { |v| Base64.strict_encode64(v) }, cookie: cookie.map { |v| Base64.strict_encode64(v.to_s) } })
end
trap("TERM") { server.shutdown }
server.start
