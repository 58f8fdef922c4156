// Command caddy is Caddy with its standard modules, the viewer_session
// middleware, and the stand-in of the DWS Viewer API for trying it out.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	// plug in Caddy modules here
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/viewersession/caddy-viewer-session"
	_ "github.com/viewersession/caddy-viewer-session/emulator"
)

func main() {
	caddycmd.Main()
}
