#!/bin/sh
# What Traffic Server needs below a directory of its own:  sh traffic_server.sh HOME HOST PORT ORIGIN
set -e
mkdir -p "$1/etc" "$1/log" "$1/run" "$1/cache"
cp -r /etc/trafficserver/. "$1/etc"
cat >> "$1/etc/records.config" << END
CONFIG proxy.config.http.server_ports STRING $3:ip-in=$2
CONFIG proxy.config.local_state_dir STRING $1/run
CONFIG proxy.config.log.logfile_dir STRING $1/log
CONFIG proxy.config.admin.user_id STRING #-1
END
echo "map / http://$4/" > "$1/etc/remap.config"
echo "$1/cache 64M" > "$1/etc/storage.config"
