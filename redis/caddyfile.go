package redis

import (
	"slices"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
)

// UnmarshalCaddyfile sets up the store from Caddyfile tokens. Syntax:
//
//	store redis {
//		address        <host:port...>
//		username       <name>
//		password       <placeholder>
//		encryption_key <placeholder> [<previous placeholder>]
//		database       <number>
//		master_name    <name>
//		sentinel_username <name>
//		sentinel_password <placeholder>
//		cluster
//		tls [{
//			trust_pool  <module> ...
//			client_auth <certificate file> <key file>
//			server_name <name>
//			insecure_skip_verify
//		}]
//		timeout        <duration>
//		prefix         <text>
//	}
func (s *Store) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the store's name
	if d.NextArg() {
		return d.Err("store redis takes no argument: options go into its block") // not quoted: it may be a URL with a password
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if seen[option] {
			return d.Errf("%s is given twice: remove one", option)
		}
		seen[option] = true
		args := d.RemainingArgs()
		if err := s.unmarshalOption(d, option, args); err != nil {
			return err
		}
	}
	if err := s.check(); err != nil {
		return d.WrapErr(err)
	}
	return nil
}

func (s *Store) unmarshalOption(d *caddyfile.Dispenser, option string, args []string) error {
	// No error quotes the arguments: they may be secrets in the wrong place.
	if want, ok := arguments[option]; ok && (len(args) < want.min || len(args) > want.max) {
		return d.Errf("%s %s", option, want.text)
	}
	if slices.Contains(args, "") {
		return d.Errf("%s: a value is empty", option)
	}
	switch option {
	case "address":
		s.Address = args
	case "username":
		s.Username = args[0]
	case "password":
		s.Password = args[0]
	case "encryption_key":
		s.EncryptionKey = args[0]
		if len(args) == 2 {
			s.PreviousEncryptionKey = args[1]
		}
	case "database":
		number, err := strconv.Atoi(args[0])
		if err != nil {
			return d.Err("database needs a number")
		}
		s.Database = number
	case "master_name":
		s.MasterName = args[0]
	case "sentinel_username":
		s.SentinelUsername = args[0]
	case "sentinel_password":
		s.SentinelPassword = args[0]
	case "cluster":
		s.Cluster = true
	case "tls":
		return s.unmarshalTLS(d)
	case "timeout":
		timeout, err := caddy.ParseDuration(args[0])
		if err != nil || timeout <= 0 {
			return d.Err("timeout needs a duration, such as 150ms")
		}
		s.Timeout = caddy.Duration(timeout)
	case "prefix":
		s.Prefix = args[0]
	default:
		return d.Errf("unrecognized subdirective %q of store redis; it takes address, username, password, encryption_key, database, master_name, sentinel_username, sentinel_password, cluster, tls, timeout and prefix", option)
	}
	return nil
}

// arguments says how many each option takes.
var arguments = map[string]struct {
	min, max int
	text     string
}{
	"address":           {1, 1 << 10, "needs at least one host and port"},
	"username":          {1, 1, "needs a name, and nothing else"},
	"password":          {1, 1, "needs one placeholder, such as {file./path}, and nothing else"},
	"encryption_key":    {1, 2, "needs one placeholder, such as {file./path}, and perhaps that of the previous key"},
	"database":          {1, 1, "needs a number, and nothing else"},
	"master_name":       {1, 1, "needs the name that Sentinels know the primary by, and nothing else"},
	"sentinel_username": {1, 1, "needs a name, and nothing else"},
	"sentinel_password": {1, 1, "needs one placeholder, such as {file./path}, and nothing else"},
	"cluster":           {0, 0, "takes no argument"},
	"tls":               {0, 0, "takes no argument: its options go into a block"},
	"timeout":           {1, 1, "needs a duration, such as 150ms, and nothing else"},
	"prefix":            {1, 1, "needs a text, and nothing else"},

	"client_auth":          {2, 2, "needs the files of a certificate and its key"},
	"server_name":          {1, 1, "needs a name, and nothing else"},
	"insecure_skip_verify": {0, 0, "takes no argument"},
}

// unmarshalTLS reads what reverse_proxy knows as tls_*.
func (s *Store) unmarshalTLS(d *caddyfile.Dispenser) error {
	s.TLS = new(reverseproxy.TLSConfig)
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if seen[option] {
			return d.Errf("tls %s is given twice: remove one", option)
		}
		seen[option] = true
		if option == "trust_pool" {
			if !d.NextArg() {
				return d.Err("tls trust_pool needs a name, for example: trust_pool file /path/to/ca.pem")
			}
			name := d.Val()
			mod, err := caddyfile.UnmarshalModule(d, "tls.ca_pool.source."+name)
			if err != nil {
				return err
			}
			pool, ok := mod.(caddytls.CA)
			if !ok {
				return d.Errf("tls trust_pool %s is not a source of certificates", name)
			}
			s.TLS.CARaw = caddyconfig.JSONModuleObject(pool, "provider", name, nil)
			continue
		}
		args := d.RemainingArgs()
		if want, ok := arguments[option]; ok && (len(args) < want.min || len(args) > want.max) {
			return d.Errf("tls %s %s", option, want.text)
		}
		switch option {
		case "client_auth":
			s.TLS.ClientCertificateFile, s.TLS.ClientCertificateKeyFile = args[0], args[1]
		case "server_name":
			s.TLS.ServerName = args[0]
		case "insecure_skip_verify":
			s.TLS.InsecureSkipVerify = true
		default:
			return d.Errf("unrecognized subdirective %q of tls; it takes trust_pool, client_auth, server_name and insecure_skip_verify", option)
		}
	}
	return nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*Store)(nil)
