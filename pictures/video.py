"""Upscaling a video: frame by frame, with its frame rate, its colours and its sound, through PyAV (an optional package)."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils import ImageError, UserError

MP4_SOUND = {"aac", "ac3", "alac", "eac3", "flac", "mp2", "mp3", "opus"}
BT601, BT709, UNSPECIFIED = 5, 1, 2  # matrices between RGB and YUV, by their numbers in the standards (ITU-T H.273)
VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg"}
VIDEO_SUFFIXES |= {".ts", ".mts", ".flv", ".wmv", ".3gp"}


def upscale_video(source, target, upscale_rgb) -> int:
    """Write `source` to the MP4 file `target` with each frame passed through `upscale_rgb` ((H, W, 3) uint8 to the same).

    Frames are streamed, so memory does not grow with the length; they are turned upright, which a phone leaves to the
    player. Times are kept, and the sound is copied. Returns the number of frames. Raises ImageError for a file that is no
    video, UserError without the package av; then no file is left.
    """
    try:
        import av
    except ImportError:
        raise UserError("video needs the package av: pip install av") from None
    source, target = Path(source), Path(target)
    if source.exists() and not source.is_file():
        raise ImageError(f"{source}: cannot be read as a video (it is no file)")  # a named pipe would be waited for
    temporary = target.with_name(f".{target.stem[:40]}.part.mp4")
    try:
        with av.open(str(source)) as reader, av.open(str(temporary), "w") as writer:
            count = _copy(av, reader, writer, upscale_rgb)
        temporary.replace(target)
    except (av.error.FFmpegError, OSError, IndexError, ValueError) as error:
        raise ImageError(f"{source}: cannot be read or written as a video ({error})") from None
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _upright_rgb(frame):
    """The frame as (H, W, 3) uint8. Where it does not tell its matrix, that is the usual one of its size."""
    matrix = frame.colorspace if frame.colorspace != UNSPECIFIED else BT709 if frame.height >= 720 else BT601
    return np.rot90(frame.reformat(format="rgb24", src_colorspace=matrix).to_ndarray(), round(frame.rotation / 90))


def _tag_colours(encoder, frame):
    """Let the stream say what its colours mean, or a player would guess, and by the new size."""
    encoder.colorspace, encoder.color_range = BT709, 1  # 1: luma from 16 to 235
    encoder.color_primaries, encoder.color_trc = frame.color_primaries, frame.color_trc


class _Sound:
    """The sound of the result: that of the source as it is, or as AAC where MP4 does not hold it."""

    def __init__(self, writer, source):
        self.copied = source.codec_context.codec.canonical_name in MP4_SOUND
        if self.copied:
            self.stream = writer.add_stream_from_template(source)
        else:
            layout = "mono" if source.codec_context.layout.nb_channels == 1 else "stereo"  # AVI does not name its own
            self.stream = writer.add_stream("aac", rate=source.rate, layout=layout)

    def packets(self, packet) -> list:
        """What a packet of the source becomes; the last, which is empty, brings out what is left."""
        if not self.copied:
            packets = [result for frame in packet.decode() for result in self.stream.encode(frame)]
            return packets + (list(self.stream.encode()) if packet.dts is None else [])
        packet.stream = self.stream
        return [packet] if packet.dts is not None else []


def _copy(av, reader, writer, upscale_rgb):
    """Upscale the first video stream of `reader` into `writer`, with its first sound stream."""
    video_in = reader.streams.video[0]
    sound_in = reader.streams.audio[0] if reader.streams.audio else None
    video_out, count = None, 0
    sound = _Sound(writer, sound_in) if sound_in else None
    rate = video_in.average_rate or video_in.guessed_rate
    bar = tqdm(total=video_in.frames or None, unit="frame", leave=False, disable=None)
    # The sound waits in `packets` until the first frame has told the size, since a stream must be whole before it is used.
    packets = []
    for packet in reader.demux(*(stream for stream in (video_in, sound_in) if stream)):
        if packet.stream is sound_in:
            packets += sound.packets(packet)
        else:
            for frame in packet.decode():
                pixels = upscale_rgb(_upright_rgb(frame))
                # yuv420p halves the colours' resolution, so it needs even sides: a last row or column may go
                pixels = pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2]
                if video_out is None:
                    video_out = writer.add_stream("libx264", rate=rate, options={"crf": "17"})
                    video_out.height, video_out.width = pixels.shape[:2]
                    video_out.pix_fmt = "yuv420p"
                    video_out.codec_context.time_base = video_in.time_base  # frames need not come at a steady rate
                    aspect = video_in.sample_aspect_ratio  # of a pixel
                    if aspect:
                        video_out.codec_context.sample_aspect_ratio = 1 / aspect if frame.rotation % 180 else aspect
                    _tag_colours(video_out.codec_context, frame)
                result = av.VideoFrame.from_ndarray(pixels.copy(), format="rgb24")
                result = result.reformat(format="yuv420p", dst_colorspace=BT709)
                result.pts, result.time_base = frame.pts, frame.time_base
                writer.mux(video_out.encode(result))
                count += 1
                bar.update()
        if video_out is not None:
            writer.mux(packets)
            packets = []
    bar.close()
    if video_out is None:
        raise ValueError("no frame in it")
    writer.mux(video_out.encode())
    return count
