package emulator

import (
	"fmt"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective("dws_emulator", parseCaddyfile)
	httpcaddyfile.RegisterDirectiveOrder("dws_emulator", httpcaddyfile.Before, "respond")
}

func parseCaddyfile(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	handler := new(Handler)
	if err := handler.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	return handler, nil
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	dws_emulator [<matcher>] {
//		api_key      <key>
//		server_url   <url>
//		max_ttl      <duration>
//		delay        <duration>
//		allow_remote
//		permissions_member permissions|document_permissions
//		strict
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume directive name
	if d.NextArg() {
		return d.Errf("unexpected argument %q: the settings go in a block", d.Val())
	}
	arguments := map[string]int{"api_key": 1, "server_url": 1, "max_ttl": 1, "delay": 1, "allow_remote": 0, "permissions_member": 1, "strict": 0}
	seen := make(map[string]bool)
	for d.NextBlock(0) {
		name, args := d.Val(), d.RemainingArgs()
		want, known := arguments[name]
		switch {
		case !known:
			return d.Errf("unrecognized subdirective %q: use api_key, server_url, max_ttl, delay, allow_remote, permissions_member or strict", name)
		case seen[name]:
			return d.Errf("%s is given twice", name)
		case len(args) != want || slices.Contains(args, ""):
			return d.Errf("%s takes %d non-empty argument(s), got %q", name, want, args)
		}
		seen[name] = true

		var err error
		switch name {
		case "api_key":
			h.APIKey = args[0]
		case "server_url":
			h.ServerURL = args[0]
		case "max_ttl":
			h.MaxTTL, err = parseDuration(args[0])
		case "delay":
			h.Fault.Delay, err = parseDuration(args[0])
		case "allow_remote":
			h.AllowRemote = true
		case "permissions_member":
			h.PermissionsMember = args[0]
			err = Options{PermissionsMember: args[0]}.validate()
		case "strict":
			h.Strict = true
		}
		if err != nil {
			return d.Errf("%s: %v", name, err)
		}
	}
	return nil
}

func parseDuration(value string) (caddy.Duration, error) {
	duration, err := caddy.ParseDuration(value)
	if err != nil || duration <= 0 {
		return 0, fmt.Errorf("%q is not a positive duration such as 300ms or 15m", value)
	}
	return caddy.Duration(duration), nil
}
