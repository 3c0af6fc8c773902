// A real Helia on loopback TCP: connects to one peer, fetches the blocks that it is told of, and serves what it is given.
// Lines of JSON in, lines of JSON out; ends with its input.
import { createInterface } from 'node:readline'
import { withBitswap } from '@helia/bitswap'
import { withLibp2pLight } from '@helia/libp2p'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import * as dagCbor from '@ipld/dag-cbor'
import { createHeliaLight } from 'helia'
import { CID } from 'multiformats/cid'

const helia = withBitswap(
  withLibp2pLight(createHeliaLight({ codecs: [dagCbor] }), {
    addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    services: { identify: identify() }
  })
)
await helia.start()
const say = (value) => process.stdout.write(JSON.stringify(value) + '\n')

const bytesOf = async (found) => {
  if (found instanceof Uint8Array) return found
  const parts = []
  for await (const part of found) parts.push(part)
  return Buffer.concat(parts)
}

const commands = {
  connect: async ({ address }) => void (await helia.libp2p.dial(multiaddr(address))),
  get: async ({ cid, ms }) => {
    const data = await bytesOf(await helia.blockstore.get(CID.parse(cid), { signal: AbortSignal.timeout(ms) }))
    return Buffer.from(data).toString('base64')
  },
  put: async ({ cid, data }) => void (await helia.blockstore.put(CID.parse(cid), Buffer.from(data, 'base64')))
}

say({ peer: helia.libp2p.peerId.toString(), address: helia.libp2p.getMultiaddrs()[0].toString() })
for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...rest } = JSON.parse(line)
  try {
    say({ ok: (await commands[command](rest)) ?? true })
  } catch (error) {
    say({ error: `${error.name}: ${error.message}` })
  }
}
await helia.stop()
process.exit(0)
